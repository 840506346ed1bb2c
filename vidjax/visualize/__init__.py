"""Images, animations and charts from arrays."""
