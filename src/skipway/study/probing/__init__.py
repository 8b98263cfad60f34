"""What a trial does beside training: probes of its network, and experiments that build networks of their own."""
