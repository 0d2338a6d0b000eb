-- Live status of a job that I own.
-- KEYS 1 a  2 s:<id>   ARGV 1 token  2 ttl, then field, value …
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[2], ARGV[2])
return 1
