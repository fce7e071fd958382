"""A whole little Fly for flyctl: apps, images, secrets, releases, and the APIs that show them."""
