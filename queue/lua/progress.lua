-- Live status of a job that I own, and points of its curve.
-- KEYS 1 a  2 s:<id>  3 m:<id>
-- ARGV 1 token  2 ttl  3 points kept  4 number of status words, then these: field, value …; then for each
--      point the number of its words and these: name, value …
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local at = 4 + tonumber(ARGV[4])
redis.call('HSET', KEYS[2], unpack(ARGV, 5, at))
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if at == #ARGV then return 1 end
while at < #ARGV do
  local last = at + 1 + tonumber(ARGV[at + 1])
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, at + 2, last))
  at = last
end
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return 1
