"""What a recipe may ask of training besides, a file each."""
