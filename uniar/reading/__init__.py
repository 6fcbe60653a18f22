"""Files that users name, each kind read in one place: JSON, JSON lines, pictures, prompts, plug-ins. Also files written
whole."""
