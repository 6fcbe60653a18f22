"""How UniAR-Tiny is made: its sizes, a file for each stage of its training, and what the stages share."""
