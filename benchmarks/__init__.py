"""What stkai costs, measured against bare httpx and against other libraries; see docs/performance.md."""
