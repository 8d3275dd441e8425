"""Result files of any layout, gigabytes of them and possibly damaged, read in bounded memory."""
