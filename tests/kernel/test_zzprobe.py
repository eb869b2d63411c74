import time, subprocess
def test_probe(netns):
    def mods(): return {l.split()[0] for l in open('/proc/modules')}
    out=[]
    def step(name, f):
        b=mods(); t=time.monotonic(); 
        try: r=f()
        except Exception as e: r=repr(e)
        out.append(f"{name}: {time.monotonic()-t:.2f} s new modules {mods()-b} {str(r)[:150]}")
    def work():
        def imp():
            import nostrvpn.io.relay_host
        step("import relay_host", imp)
        from nostrvpn.io import nftables, relay_table, forward_policy, relay_routing
        step("own_tables", nftables.own_tables)
        step("own_tables", nftables.own_tables)
        step("uplinks", relay_routing.uplinks)
        t=relay_table.RelayTable("rl",100)
        step("create", lambda: t.create(("lo",)))
        step("create", lambda: t.create(("lo",)))
        step("obst", forward_policy.forward_obstacles)
        step("nft -f trivial", lambda: nftables.apply_ruleset("add table inet x\n"))
        step("counters", t.read_counters)
        step("remove", t.remove)
    netns.call(work)
    assert 0, "\n".join(out)
