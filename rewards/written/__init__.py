"""What a sample wrote, compared with what is right."""
