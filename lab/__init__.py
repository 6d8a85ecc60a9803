"""What knows nothing of reasoning: options, devices, run folders. Nothing here imports from the rest of the repository."""
