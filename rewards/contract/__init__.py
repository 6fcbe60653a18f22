"""What a reward is given and must return, and how a recipe's entry becomes one."""
