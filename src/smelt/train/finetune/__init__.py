"""A fine-tuning job: files in, a tuned folder out."""
