"""What is shipped beside the code: the image, the compose file, the Kubernetes files and the workflows."""
