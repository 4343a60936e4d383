"""Download the videos of a CSV of links with yt-dlp."""
