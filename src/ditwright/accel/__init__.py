"""The same numbers sooner: swaps of layers and runners, none of which the networks know."""
