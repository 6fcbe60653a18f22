"""Episodes: how a prompt becomes turns of the policy, text or pictures. One file per built-in episode."""
