"""Training beyond `fit`: the optimizer for these models, and learning from long documents."""
