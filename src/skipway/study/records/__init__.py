"""What a trial leaves behind: its record, how far it is, and how files are written whole."""
