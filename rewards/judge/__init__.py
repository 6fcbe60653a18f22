"""A judge behind an OpenAI-compatible API.

More than 1300 lines, because judges answer in every form, which takes 400 lines to read without guessing, and what they
are asked, by preset and by kind of edit, is text.
"""
