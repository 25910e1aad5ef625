"""Worker processes: started, watched, rolled, asked and added up by one process that carries no mail."""
