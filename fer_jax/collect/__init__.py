"""A CSV of links to a folder of videos, downloaded by yt-dlp."""
