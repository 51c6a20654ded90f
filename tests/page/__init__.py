"""The page that shows a pool, in a real Chromium."""
