# The book's environment with the versions of constraints.txt, in two targets:
#   docker build --target cpu  --tag kdcore:cpu .
#   docker build --target cuda --tag kdcore:cuda .   (docker run --gpus all …; CUDA comes with torch's wheels)
FROM python:3.11.14-slim-bookworm AS checkout
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH
# git tells a record which commit it is of; make runs what the README names. Debian keeps no old versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 reader
WORKDIR /home/reader/kdcore
COPY --chown=reader LICENSE README.md CITATION.cff pyproject.toml constraints.txt environment.yml Makefile ./
COPY --chown=reader _config.yml _toc.yml ./
COPY --chown=reader ci ci
COPY --chown=reader kdcore kdcore
COPY --chown=reader book book
COPY --chown=reader chapters chapters
COPY --chown=reader data/README.md data/README.md
RUN chown reader . && install --directory --owner reader /opt/venv

FROM checkout AS cpu
USER 1000
# uv knows where torch without CUDA lies; it is a tenth of the size.
ENV UV_TORCH_BACKEND=cpu
RUN python ci/environment.py /opt/venv && rm -rf /home/reader/.cache
ENTRYPOINT ["kdcore"]
CMD ["--help"]

FROM checkout AS cuda
USER 1000
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN python ci/environment.py /opt/venv && rm -rf /home/reader/.cache
ENTRYPOINT ["kdcore"]
CMD ["--help"]
