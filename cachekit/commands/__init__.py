"""What the command line does for write-back: dead letters and workers. Knows no option parser."""
