"""What a running daemon is asked, and what it does about it."""
