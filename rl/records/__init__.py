"""What a run keeps to be looked at: every sample as a row with its picture, and the machine it ran on."""
