"""Its being here puts this folder on the path, for what tests of several folders share."""
