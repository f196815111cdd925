"""What a build writes and a Runtime opens: graphs or engines, records, measured costs."""
