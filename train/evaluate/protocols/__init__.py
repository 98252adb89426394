"""Official protocols on files: readers and writers of each dataset's formats, and their reports."""
