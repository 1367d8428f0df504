"""The shape of Flower's scikit-learn app: float64 coefficients of a logistic regression."""
