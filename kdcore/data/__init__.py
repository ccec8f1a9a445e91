from kdcore.data.arrays import Arrays
