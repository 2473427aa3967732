"""Networks that more than one day uses; each is written out in the notebook that teaches it first."""
