"""What no policy can exceed: the exact optimum of a slot, its relaxation, and the clairvoyant bound."""
