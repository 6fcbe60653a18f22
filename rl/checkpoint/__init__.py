"""What a run goes on from: checkpoints that are whole or not there, and the weights in them."""
