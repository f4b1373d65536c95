"""The policy beside real edges and devices: a controller that advises, and what it sees of them."""
