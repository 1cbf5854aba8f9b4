"""A mix of requests that shifts from short answers to long ones, on actors that change their stage."""
