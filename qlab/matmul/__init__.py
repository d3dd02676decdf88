"""INT8 arithmetic, and the roofline that says when it can pay."""
