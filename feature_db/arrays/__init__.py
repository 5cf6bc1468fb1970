"""Arrays that follow from the rows of a dictionary, in files that searches map into memory."""
