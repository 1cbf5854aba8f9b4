"""Pictures, videos and questions that the small model was trained to answer, drawn fresh."""
