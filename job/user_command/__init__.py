"""Run any command as a job: process, persisted paths, checkpoint backup, resume arguments."""
