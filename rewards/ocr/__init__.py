"""Text in images, read and compared."""
