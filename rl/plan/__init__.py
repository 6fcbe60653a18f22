"""What a recipe needs, from config files alone."""
