"""A proxy in front of any OpenAI-compatible URL that keeps the traffic as a data set."""
