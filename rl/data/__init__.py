"""What is drawn and asked: prompt files, dataset rows, questions."""
