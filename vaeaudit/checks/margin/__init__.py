"""The margin check: how far an input may move before its reconstruction leaves radius r."""
