"""The native HTTP interface: requests decoded once, `Service` asked, results and errors sent. No logic of its own."""
