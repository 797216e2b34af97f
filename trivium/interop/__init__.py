"""Exchange of models with others: families of transformers' own classes, and engines that run them."""
