"""Training of the shipped priors (torch, the ``train`` extra); nothing at run time imports this."""
