// Checkboxes above a list of papers: show those that have all checked tags. Without this script all are shown.
document.addEventListener("DOMContentLoaded", function () {
  document.querySelectorAll(".kdcore-filter").forEach(function (section) {
    const boxes = Array.from(section.querySelectorAll("input[type=checkbox]"));
    const papers = Array.from(section.querySelectorAll("li[data-tags]"));
    const count = section.querySelector("output");
    function filter() {
      const wanted = boxes.filter((box) => box.checked).map((box) => box.value);
      papers.forEach(function (paper) {
        const tags = paper.dataset.tags.split(" ").map((tag) => "tag-" + tag);
        paper.hidden = !wanted.every((tag) => tags.includes(tag));
      });
      count.textContent = papers.filter((paper) => !paper.hidden).length + " of " + papers.length + " papers";
    }
    boxes.forEach((box) => box.addEventListener("change", filter));
    section.querySelector("fieldset").hidden = false;
    filter();  // a browser may remember what was checked
  });
});
