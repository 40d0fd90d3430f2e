"""Small tools that belong to no subject: files, concurrency. Imports nothing of ConvLens but its errors."""
