-- Live status of a job that I own, and points of its curve.
-- KEYS 1 a  2 s:<id>  3 m:<id>  4 cx
-- ARGV 1 token  2 id  3 ttl  4 points kept  5 number of status words, then these: field, value …; then for each
--      point the number of its words and these: name, value …
-- Returns 0 not mine, 1, 2 it is to be cancelled.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local said = 1 + redis.call('HEXISTS', KEYS[4], ARGV[2])
local at = 5 + tonumber(ARGV[5])
redis.call('HSET', KEYS[2], unpack(ARGV, 6, at))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if at == #ARGV then return said end
while at < #ARGV do
  local last = at + 1 + tonumber(ARGV[at + 1])
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, at + 2, last))
  at = last
end
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return said
