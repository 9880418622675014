"""A trained model that answers: its card, the predictor, and predictions for whole sources."""
